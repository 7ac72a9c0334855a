#!/bin/bash
# A pipeline as dependent jobs, one for each stage (`structseg submit FILE` does the same):
#   experiments/slurm/pipeline.sh experiments/stn_icnn/synthetic.yaml [-- further arguments of every stage]
# Options of sbatch for all jobs are set by its environment variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.
set -euo pipefail
file="${1:?give a pipeline: pipeline.sh FILE [-- further arguments of every stage]}"
script="$(dirname "$0")/pipeline_stage.sbatch"

stages=$(structseg pipeline "$file" --dry-run "${@:2}" | sed -n 's/^\([^ :]*\): .*/\1/p')
options=()
for stage in $stages; do
  job=$(sbatch --parsable --job-name="${stage//\//_}" "${options[@]}" "$script" "$file" --until "$stage" "${@:2}")
  echo "$stage: job ${job%%;*}"
  options=(--dependency="afterok:${job%%;*}" --kill-on-invalid-dep=yes)
done
