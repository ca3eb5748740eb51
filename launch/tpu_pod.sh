#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice that is there, from a machine with gcloud:
#   bash launch/tpu_pod.sh NAME ZONE REGISTRY/tltrain --config configs/quickstart.py --workdir /shared/runs/quickstart
# REGISTRY/tltrain is an image by launch/Dockerfile with EXTRAS=quickstart,tpu, which the hosts may pull; /mnt/shared is a
# folder that all of them have mounted. They find each other by what Google tells them of their slice. After a host was
# pre-empted the same command goes on.
# Not run on TPUs. tests/launch/test_launch.py: what each host is given, and that processes find each other by the answers
# of a slice's metadata server.
set -euo pipefail
tpu="$1" zone="$2" image="$3"
shift 3
exec gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="sudo docker run --rm --privileged \
--network=host -v /mnt/shared:/shared -e TLTRAIN_CACHE=/shared/cache $image main$(printf ' %q' "$@") --coordinator=auto"
