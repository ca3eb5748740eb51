"""What the doctor looks at, one file a section: each yields findings about a case and changes nothing."""
