#!/usr/bin/env bash
# What is to be believed? MOPO and MOBILE, each plain, with MOREC as our measurements recommend it (residual score) and
# with MOREC as published (adversarial score), on two fits of the dynamics model: twelve cells, equal updates, one table.
#
#   scripts/reproduce/hopper_belief.sh DATASET.hdf5 FOLDER [key=value ...]
#   UPDATES=30000 SEEDS=3 FITS="published beta_nll" ALGOS="mopo mobile" FILTERS="plain morec morec_published" ...
#   FULL=1 ...       published sizes of networks, rollouts and scores: days on a CPU
#   SMOKE=1 ...      every cell for a moment: does it run?
#
# Weights are the published ones of hopper-medium-replay. Both fits get the same number of updates. Without FULL the
# learner is smaller, its actor faster, rollouts fewer, MOBILE samples half as many next states, and the adversarial score
# has a third of the iterations and five discriminators: two to three hours of one core. Started again it goes on where it
# was stopped.
set -euo pipefail
dataset=$1 folder=$2
shift 2
plain=() morec=() published=() mobile=()
if [ -n "${SMOKE:-}" ]; then
  set -- dynamics.max_epochs=1 dynamics.members=3 dynamics.elites=2 "dynamics.hidden=[32,32]" rollout.lanes=50 \
    "learner.hidden=[32,32]" eval.episodes=2 "$@"
  morec=(score.steps=50)
  published=(score.iterations=20 score.warm_up=0 score.pretraining_steps=20 score.snapshot_every=5 score.interval=1)
  UPDATES=${UPDATES:-200}
elif [ -z "${FULL:-}" ]; then
  set -- "learner.hidden=[128,128]" learner.actor_learning_rate=3e-4 eval.episodes=5 dynamics.max_steps=4000 \
    dynamics.max_epochs=null dynamics.patience=null dynamics.improvement=0 "$@"
  mobile=(learner.target_penalty.samples=5)
  plain=(rollout.lanes=10000)
  morec=(rollout.lanes=500 "score.hidden=[128,128,128]" score.steps=3000)
  published=(rollout.lanes=250 score.iterations=600 score.pretraining_steps=5000 score.snapshot_every=100
    score.history=5 score.interval=1)
fi
updates=${UPDATES:-30000} seeds=${SEEDS:-3}
for algo in ${ALGOS:-mopo mobile}; do
  for fit in ${FITS:-published beta_nll}; do
    for filter in ${FILTERS:-plain morec morec_published}; do
      run=$folder/$algo-$filter-$fit
      if [ -e "$run/summary.json" ] && grep -q '"status": "finished"' "$run/summary.json"; then continue; fi
      if [ -e "$run/meta.json" ]; then
        mbrl train "resume=$run" progress=false
        continue
      fi
      case $algo-$filter in
        mopo-plain) weights=(rollout.penalise.coefficient=2.5) ;;
        mopo-*) weights=(rollout.penalise.coefficient=15) ;;
        mobile-plain) weights=(learner.target_penalty.coefficient=0.1 ${mobile[@]+"${mobile[@]}"}) ;;
        mobile-*) weights=(learner.target_penalty.coefficient=0.5 ${mobile[@]+"${mobile[@]}"}) ;;
      esac
      filters="[$filter]"
      case $filter in
        plain) filters="[]" own=(${plain[@]+"${plain[@]}"}) ;;
        morec) own=(${morec[@]+"${morec[@]}"}) ;;
        morec_published) own=(${published[@]+"${published[@]}"}) ;;
      esac
      mbrl train "dataset=$dataset" env=Hopper-v5 "algo=$algo" "filter=$filters" "dynamics=$fit" "${weights[@]}" \
        "updates=$updates" "seeds=$seeds" "eval.every=$((updates / 20))" "log_every=$((updates / 40))" \
        progress=false "run_dir=$run" ${own[@]+"${own[@]}"} "$@"
    done
  done
done
python "$(dirname "$0")/table.py" "$folder"/m*/
