#!/usr/bin/env bash
# What d4rl.sh, neorl.sh, neorl2.sh and minari.sh have in common; each sets `benchmark` and `all`, its tasks, and sources
# this with its own arguments.
# shellcheck disable=SC2154
here=$(dirname "${BASH_SOURCE[0]}")
words=() smoke=''
for word in "$@"; do
  case $word in
    --help | -h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
      exit
      ;;
    --smoke) smoke=yes ;;
    -*)
      echo "$0: there is no option $word; $0 --help says more" >&2
      exit 2
      ;;
    *) words+=("$word") ;;
  esac
done
if [ ${#words[@]} = 0 ]; then
  echo "$0: no FOLDER given; $0 --help says more" >&2
  exit 2
fi
folder=${words[0]}
if [[ $folder == *=* ]]; then
  echo "$0: no FOLDER given: $folder is a setting, which comes after it" >&2
  exit 2
fi
read -ra tasks <<< "${TASKS:-$all}"
read -ra algos <<< "${ALGOS:-mopo mobile}"

seeds=${SEEDS:-4}
[ -z "$smoke" ] || seeds=${SEEDS:-2}
if ! [[ $seeds =~ ^[1-9][0-9]*$ ]]; then
  echo "$0: SEEDS=$seeds: expected a whole number, 1 or more" >&2
  exit 2
fi

if [ -n "$smoke" ]; then
  echo "$0: A SMOKE. It shows that everything runs; its numbers mean nothing." >&2
  data=$folder/smoke_data
  found=$(python "$here/suite.py" smoke "$benchmark" "$data" "${DATA:-}" "${tasks[@]}")
  read -ra tasks <<< "$found"
  own=(dynamics.max_epochs=1 dynamics.members=3 dynamics.elites=2 "dynamics.hidden=[32,32]" rollout.lanes=50
    "learner.hidden=[32,32]" eval.episodes=2 eval.every=50 log_every=100 eval.model_horizon=5)
  updates=${UPDATES:-200}
  DATA=$data
else
  own=()
  updates=${UPDATES:-3000000}
fi
if [ -n "${DATA:-}" ]; then
  DATA=$(cd "$DATA" && pwd)
  export D4RL_DATASET_DIR=$DATA NEORL_DATASET_DIR=$DATA MINARI_DATASETS_PATH=$DATA
fi
python "$here/suite.py" check "${tasks[@]}"

comma() {
  local IFS=,
  echo "$*"
}
[ -z "${LAUNCHER:-}" ] || own+=("hydra/launcher=$LAUNCHER")
mapfile -t numbers < <(seq 0 $((seeds - 1)))
mbrl train -m "algo=$(comma "${algos[@]}")" "task=$(comma "${tasks[@]}")" "seed=$(comma "${numbers[@]}")" \
  "updates=$updates" progress=false "run_dir=$folder" ${own[@]+"${own[@]}"} "${words[@]:1}"
# Where this file lies, reports say what it says and leave published figures out.
[ -z "$smoke" ] || echo "A smoke on other data under the benchmark's names: its numbers mean nothing." > "$folder/SMOKE"
mbrl report "$folder" --html "$folder/report.html"
[ -z "$smoke" ] || echo "$0: that was a smoke: its numbers mean nothing." >&2
