#!/usr/bin/env bash
# Is it the model's error, or the edge of reach? MOPO, whose penalty is nothing where the model is the truth; RAVL; and
# RAVL's learner with two critics that need not differ (base), each with the true simulator as its model and with a fitted
# one: six runs, equal updates, one table, and what `mbrl diagnose` says of the critics at the edge of reach.
#
#   scripts/reproduce/hopper_oracle.sh DATASET.hdf5 FOLDER [key=value ...]
#   UPDATES=30000 SEEDS=3 MODELS="oracle beta_nll" ALGOS="mopo base ravl" CRITICS=10 ENV=Hopper-v5 ...
#   FULL=1 ...       published sizes: days on a CPU
#   SMOKE=1 ...      every run for a moment: does it run?
#
# Without FULL the networks are smaller and rollouts fewer. Started again it goes on where it was stopped.
set -euo pipefail
dataset=$1 folder=$2
shift 2
if [ -n "${SMOKE:-}" ]; then
  set -- "learner.hidden=[32,32]" rollout.lanes=50 eval.episodes=2 "$@"
  UPDATES=${UPDATES:-200} CRITICS=${CRITICS:-3}
elif [ -z "${FULL:-}" ]; then
  set -- "learner.hidden=[128,128]" learner.actor_learning_rate=3e-4 rollout.lanes=1000 eval.episodes=5 "$@"
fi
updates=${UPDATES:-30000} seeds=${SEEDS:-3}
for model in ${MODELS:-oracle beta_nll}; do
  for algo in ${ALGOS:-mopo base ravl}; do
    run=$folder/$algo-$model
    if [ -e "$run/summary.json" ] && grep -q '"status": "finished"' "$run/summary.json"; then
      :
    elif [ -e "$run/meta.json" ]; then
      mbrl train "resume=$run" progress=false
    else
      case $algo in
        mopo) own=(algo=mopo) ;;
        base) own=(algo=ravl learner.critics=2 learner.regularisers.diversity.weight=0) ;;
        ravl) own=(algo=ravl "learner.critics=${CRITICS:-10}") ;;
        ravl_layer_norm) own=(algo=ravl "learner.critics=${CRITICS:-10}" learner.layer_norm=true) ;;
      esac
      if [ "$model" != oracle ]; then
        own+=(dynamics.max_steps=4000 dynamics.max_epochs=null dynamics.patience=null dynamics.improvement=0)
        [ -z "${SMOKE:-}" ] || own+=(dynamics.max_steps=50 "dynamics.hidden=[32,32]")
      fi
      mbrl train "dataset=$dataset" "env=${ENV:-Hopper-v5}" "dynamics=$model" "updates=$updates" \
        "seeds=$seeds" "eval.every=$((updates / 20))" "log_every=$((updates / 40))" progress=false "run_dir=$run" \
        ${own[@]+"${own[@]}"} "$@"
    fi
    [ -e "$run/diagnose/diagnose.json" ] || mbrl diagnose "$run"
  done
done
python "$(dirname "$0")/table.py" "$folder"/*/
