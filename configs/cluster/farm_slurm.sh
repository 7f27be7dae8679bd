#!/bin/bash
# A table of tasks on Slurm: a job for each row. docs/scale.md says what to do with it.
#
#   sbatch --array=0-399%20 configs/cluster/farm_slurm.sh tasks.csv /shared/farm --backbone=mobilenet_v2 --image_size=224
#
# The array goes from 0 to the number of rows minus one; %20 is how many learn at once. Then come the table, the folder
# of the farm, which all machines see, and flags of `train` for all rows. Afterwards the same command without --row
# prints the table and gathers the packs:
#
#   piggyback farm tasks.csv --output_dir=/shared/farm --backbone=mobilenet_v2 --image_size=224
#
#SBATCH --job-name=farm
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=24:00:00
#SBATCH --output=farm-%A_%a.txt
# A job whose machine is lost starts again, and goes on after the last completed epoch.
#SBATCH --requeue
##SBATCH --gpus-per-task=1
set -euo pipefail
table=$1 folder=$2
shift 2
exec piggyback farm "$table" --output_dir="$folder" --row="$SLURM_ARRAY_TASK_ID" "$@"
