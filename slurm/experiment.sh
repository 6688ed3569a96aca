#!/usr/bin/env bash
#SBATCH --job-name=prefdag
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.log
#
# One experiment as a job:       sbatch --nodes 2 --gpus-per-node 8 slurm/experiment.sh -S beta=0.3
# A sweep as an array of jobs:   sbatch --array 1-3 slurm/experiment.sh @sweep.txt     (a line per experiment: -S beta=0.1)
#
# The arguments are those of `dvc exp run`. The job runs in a clone of its own, since DVC runs one pipeline at a time in a folder,
# and shares DVC's cache and the runs of MLflow with the folder it was submitted in. There, `dvc exp show` then has the experiment.
# The folder must be on a file system that all nodes see. PREFDAG_JOBS is where the clones go: by default, beside it.
set -euo pipefail

project=$SLURM_SUBMIT_DIR
name=job-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}
clone=${PREFDAG_JOBS:-$project.jobs}/$name
if [[ ${1:-} == @* ]]; then
    line=${SLURM_ARRAY_TASK_ID:?a file of experiments needs --array}
    read -ra arguments < <(sed -n "${line}p" "$project/${1#@}") || true # it fails if there is no line
    [[ ${#arguments[@]} -gt 0 ]] || { echo "error: ${1#@} has no line $line" >&2; exit 2; }
    arguments+=("${@:2}")
else
    arguments=("$@")
fi

# shellcheck source=/dev/null
[[ ! -e $project/.venv/bin/activate ]] || . "$project/.venv/bin/activate"
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-sqlite:///$project/mlflow.db}

# A job that Slurm starts again goes on in its clone, from the last checkpoint.
if [[ ! -d $clone ]]; then
    mkdir -p "${clone%/*}"
    git clone --quiet "$project" "$clone.part"
    for file in "$project"/{params.yaml,dvc.lock,dag/*/dvc.lock}; do
        [[ ! -e $file ]] || cp "$file" "$clone.part/${file#"$project/"}"
    done
    (cd "$clone.part" && dvc cache dir --quiet --local "$(cd "$project" && dvc cache dir)")
    mv "$clone.part" "$clone"
fi
cd "$clone"
dvc checkout --quiet || true # what is not in the cache is made

gpus=${SLURM_GPUS_ON_NODE:-1}
if ((SLURM_JOB_NUM_NODES * gpus > 1)); then
    port=$((20000 + SLURM_JOB_ID % 20000))
    export PREFDAG_LAUNCHER="srun --kill-on-bad-exit=1 --ntasks-per-node 1 torchrun --nnodes $SLURM_JOB_NUM_NODES \
--nproc-per-node $gpus --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID --rdzv-endpoint $(hostname):$port"
fi
dvc exp run --name "$name" "${arguments[@]}"
dvc exp push --no-cache "$project" "$name"
