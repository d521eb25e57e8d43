#!/usr/bin/env bash
#SBATCH --job-name={{name}}
#SBATCH --array=0-{{last_share}}
#SBATCH --nodes={{nodes_of_task}}
#SBATCH --ntasks-per-node={{tasks}}
#SBATCH --gpus-per-node={{accelerators}}
#SBATCH --partition={{queue}}
#SBATCH --time={{hours}}:00:00
#SBATCH --signal=TERM@{{grace}}
#SBATCH --requeue
#SBATCH --open-mode=append
# Submit it with sbatch. SLURM asks the tasks to stop {{grace}} seconds before the end (and at a
# preemption, where the cluster gives grace); they save and exit with {{stopped}}, and the job queues again.
set -u
trap : TERM # meant for the tasks; this shell must outlive them
cd {{code|sh}} || exit
code=0
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -u launch.py {{command}} || code=$?
if [ "$code" -eq {{stopped}} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
