#!/usr/bin/env bash
#SBATCH --job-name=gpt2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=h100:8
#SBATCH --partition=gpu
#SBATCH --time=4:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Submit it with sbatch. SLURM asks the tasks to stop 120 seconds before the end (and at a
# preemption, where the cluster gives grace); they save and exit with 75, and the job queues again.
set -u
trap : TERM # meant for the tasks; this shell must outlive them
cd /code || exit
code=0
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -u launch.py train --config=experiments/gpt2.py:size=small --config.optim.lr=1e-3 --workdir=/runs/gpt2 || code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
