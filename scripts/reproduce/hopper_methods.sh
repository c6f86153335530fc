#!/usr/bin/env bash
# Do planned actions, or one model with critics that are held flat, help offline? MOPO, MOPO with COPlanner's conservative
# rollouts, and MOPO on a single model with and without each regulariser, equal updates, one table.
#
#   scripts/reproduce/hopper_methods.sh DATASET.hdf5 FOLDER [key=value ...]
#   UPDATES=20000 SEEDS=3 ARMS="mopo coplanner single single_lipschitz spectral ..." ...
#   FULL=1 ...       published sizes of networks and rollouts: days on a CPU
#   SMOKE=1 ...      every arm for a moment: does it run?
#
# The penalty's weight is the published one of hopper-medium-replay for every arm. Both methods were published online; this
# is our adaptation. Started again it goes on where it was stopped. About an hour of one core without FULL.
set -euo pipefail
dataset=$1 folder=$2
shift 2
if [ -n "${SMOKE:-}" ]; then
  set -- dynamics.max_epochs=1 "dynamics.hidden=[32,32]" rollout.lanes=50 "learner.hidden=[32,32]" eval.episodes=2 "$@"
  UPDATES=${UPDATES:-200}
elif [ -z "${FULL:-}" ]; then
  set -- "learner.hidden=[128,128]" learner.actor_learning_rate=3e-4 eval.episodes=5 dynamics.max_steps=4000 \
    dynamics.max_epochs=null dynamics.patience=null dynamics.improvement=0 "$@"
fi
updates=${UPDATES:-20000} seeds=${SEEDS:-3}
for arm in ${ARMS:-mopo coplanner single single_lipschitz spectral robust_fgsm robust_uniform gradient_penalty}; do
  run=$folder/$arm
  if [ -e "$run/summary.json" ] && grep -q '"status": "finished"' "$run/summary.json"; then continue; fi
  if [ -e "$run/meta.json" ]; then
    mbrl train "resume=$run" progress=false
    continue
  fi
  case $arm in
    mopo) what=() ;;
    coplanner) what=("filter=[coplanner]") ;;
    single | single_lipschitz) what=("dynamics=$arm") ;;
    *) what=(dynamics=single "filter=[$arm]") ;;
  esac
  lanes=()
  if [ -z "${FULL:-}${SMOKE:-}" ]; then
    lanes=(rollout.lanes=10000)
    if [ "$arm" = coplanner ]; then lanes=(rollout.lanes=1000); fi
  fi
  mbrl train "dataset=$dataset" env=Hopper-v5 algo=mopo rollout.penalise.coefficient=2.5 ${what[@]+"${what[@]}"} \
    ${lanes[@]+"${lanes[@]}"} "updates=$updates" "seeds=$seeds" "eval.every=$((updates / 20))" \
    "log_every=$((updates / 40))" progress=false "run_dir=$run" "$@"
done
python "$(dirname "$0")/table.py" "$folder"/*/
