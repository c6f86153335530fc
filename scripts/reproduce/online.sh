#!/usr/bin/env bash
# How many real steps does a return cost? SAC, MBPO, MBPO with COPlanner, and a single model with each way to hold its
# critics flat: five stacked seeds each, one table and one figure a task.
#
#   scripts/reproduce/online.sh FOLDER [key=value ...]
#   TASKS="Pendulum-v1 InvertedPendulum-v5" ARMS="sac mbpo ..." SEEDS=5 scripts/reproduce/online.sh runs/online
#   ARMS="coplanner_explore coplanner_rollouts" ...   one half of COPlanner each
#   SMOKE=1 ...      every arm for a moment: does it run?
#
# Small networks, so that all of it is an hour or two of one core. Started again it goes on where it was stopped.
set -euo pipefail
folder=$1
shift
seeds=${SEEDS:-5}
set -- "dynamics.hidden=[64,64]" eval.episodes=5 lipschitz.measure=true "$@"
if [ -n "${SMOKE:-}" ]; then
  set -- loop.steps=60 loop.warm_up=30 loop.fit_every=25 loop.evaluate_every=15 rollout.lanes=50 dynamics.max_epochs=2 "$@"
fi
for task in ${TASKS:-Pendulum-v1 InvertedPendulum-v5}; do
  case $task in
    Pendulum*) hidden="[64,64]" ;;
    *) hidden="[128,128]" ;;
  esac
  for arm in ${ARMS:-sac mbpo coplanner single spectral robust_fgsm robust_uniform gradient_penalty}; do
    run=$folder/$task/$arm
    if [ -e "$run/summary.json" ] && grep -q '"status": "finished"' "$run/summary.json"; then continue; fi
    if [ -e "$run/meta.json" ]; then
      mbrl train "resume=$run" progress=false
      continue
    fi
    case $arm in
      sac) what=(algo=sac) ;;
      mbpo) what=(algo=mbpo) ;;
      coplanner) what=(algo=mbpo "filter=[coplanner]") ;;
      coplanner_rollouts) what=(algo=mbpo "filter=[coplanner]" explore=policy) ;;
      coplanner_explore) what=(algo=mbpo "filter=[coplanner]" actions=policy) ;;
      single) what=(algo=mbpo dynamics=single) ;;
      *) what=(algo=mbpo dynamics=single "filter=[$arm]") ;;
    esac
    mbrl train loop=online "env=$task" "${what[@]}" "learner.hidden=$hidden" "seeds=$seeds" progress=false \
      "run_dir=$run" "$@"
  done
  python "$(dirname "$0")/online_table.py" "$folder/$task" "$folder/$task"/*/
done
