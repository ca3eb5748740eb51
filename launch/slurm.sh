#!/usr/bin/env bash
#SBATCH --job-name=tltrain
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
# One run on the nodes of an allocation, a process a node with all its devices, or a process a GPU:
#   sbatch --nodes=2 --ntasks-per-node=1 --gres=gpu:8 launch/slurm.sh --config FILE --workdir DIR
#   sbatch --nodes=2 --ntasks-per-node=8 --gres=gpu:8 launch/slurm.sh --config FILE --workdir DIR
# DIR and the features ($TLTRAIN_CACHE) lie where all nodes see them. A minute before its time is over the job saves
# and ends; requeued, it goes on.
# Tried on a Slurm of two nodes, one core each: tests/launch/test_slurm.py, requeued amid its work, and the report of a
# job never stopped, in under a minute. No cluster and no GPU was at hand.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
exec srun --kill-on-bad-exit=1 .venv/bin/python -m tltrain.main "$@"
