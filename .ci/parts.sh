# Times the parts of .ci/run, which takes this in: `part NAME BUDGET [LIMIT]` begins one and ends the one before, and
# `end_parts` says how long each took. What the numbers mean is in budget.py. If CI fails the table is printed, too.
scratch=$(mktemp -d)
part_name=

part() {
  if [ -n "$part_name" ]; then
    echo "$part_name|$((SECONDS - part_started))|$part_budget|$part_limit" >> "$scratch/parts"
  fi
  part_name=${1:-} part_budget=${2:-} part_limit=${3:-} part_started=$SECONDS
}

end_parts() {
  part
  python3 .ci/budget.py "$scratch/parts"
}

on_exit() {
  local status=$?
  if [ -n "$part_name" ]; then
    echo "CI failed in the part: $part_name"
    end_parts || true
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap on_exit EXIT
