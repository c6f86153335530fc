#!/usr/bin/env bash
# Which loss, which score, which cut, and how much each is worth: two fits of one dataset at equal numbers of updates,
# MOPO on each where there is a simulator, and what `mbrl diagnose` says of both.
#
#   scripts/reproduce/belief_systems.sh FOLDER NAME WHAT... [-- key=value ...]
#   scripts/reproduce/belief_systems.sh runs hopper dataset=hopper-medium.hdf5 env=Hopper-v5
#   scripts/reproduce/belief_systems.sh runs glucose dataset=Simglucose-high-100000-train.npz env=null
#   UPDATES=20000 STEPS=4000 SEEDS=3 FITS="published beta_nll" SCORES="ranking adversarial_mixture" ...
#
# Where env=null nothing can be scored, and only the fits are compared. Call it once for each system, then
# `python scripts/reproduce/belief_table.py FOLDER/*/` for the tables. Started again it goes on where it was stopped.
set -euo pipefail
folder=$1 name=$2
shift 2
updates=${UPDATES:-20000} steps=${STEPS:-4000} seeds=${SEEDS:-3}
verb=train
what=()
for word in "$@"; do
  case $word in
    --) continue ;;
    env=null) verb=fit ;;
  esac
  what+=("$word")
done
judged=()
for score in ${SCORES-ranking adversarial_mixture}; do judged+=(--score "$score"); done
for fit in ${FITS:-published beta_nll}; do
  run=$folder/$name-$fit
  if [ ! -e "$run/meta.json" ]; then
    mbrl "$verb" "dynamics=$fit" "dynamics.max_steps=$steps" dynamics.max_epochs=null dynamics.patience=null \
      dynamics.improvement=0 score=residual "seeds=$seeds" "updates=$updates" "eval.every=$((updates / 20))" \
      "log_every=$((updates / 40))" progress=false "run_dir=$run" "${what[@]}"
  elif ! grep -q '"status": "finished"' "$run/meta.json"; then
    mbrl "$verb" "resume=$run" progress=false
  fi
  [ -e "$run/diagnose/diagnose.json" ] || mbrl diagnose "$run" ${judged[@]+"${judged[@]}"}
done
