#!/usr/bin/env bash
# Minari's mujoco sets, 28 tasks: MOPO and MOBILE, one sweep, one report.
#
#   scripts/reproduce/minari.sh FOLDER [key=value ...]
#   ALGOS="mopo mobile" TASKS="mujoco/hopper/medium-v0 ..." SEEDS=4 UPDATES=3000000 ...
#   DATA=FOLDER ...       where the datasets lie; default: as docs/data.md says
#   LAUNCHER=ray ...      or joblib, submitit_slurm: jobs at the same time
#   scripts/reproduce/minari.sh FOLDER --smoke
#
# Budget: 28 tasks x 2 algorithms x 4 seeds = 224 runs of 3,000,000 updates. An estimate, from measured rates and not
# from whole runs: about 8,000 hours of one CPU core, 11 a run of MOPO and 60 a run of MOBILE at Hopper's size, and more
# for humanoids (docs/reproduce.md); on a GPU unmeasured. Started again with the same FOLDER it goes on where it was
# stopped.
# --smoke: minutes; small networks, 200 updates, on the datasets found in DATA or else made up on the spot.
set -euo pipefail
benchmark=minari
all="mujoco/hopper/simple-v0 mujoco/hopper/medium-v0 mujoco/hopper/expert-v0
  mujoco/walker2d/simple-v0 mujoco/walker2d/medium-v0 mujoco/walker2d/expert-v0
  mujoco/halfcheetah/simple-v0 mujoco/halfcheetah/medium-v0 mujoco/halfcheetah/expert-v0
  mujoco/ant/simple-v0 mujoco/ant/medium-v0 mujoco/ant/expert-v0
  mujoco/humanoid/simple-v0 mujoco/humanoid/medium-v0 mujoco/humanoid/expert-v0
  mujoco/humanoidstandup/simple-v0 mujoco/humanoidstandup/medium-v0 mujoco/humanoidstandup/expert-v0
  mujoco/invertedpendulum/medium-v0 mujoco/invertedpendulum/expert-v0
  mujoco/inverteddoublependulum/medium-v0 mujoco/inverteddoublependulum/expert-v0
  mujoco/swimmer/medium-v0 mujoco/swimmer/expert-v0
  mujoco/reacher/medium-v0 mujoco/reacher/expert-v0
  mujoco/pusher/medium-v0 mujoco/pusher/expert-v0"
all=${all//$'\n'/ }
# shellcheck source-path=SCRIPTDIR source=suite.sh
source "$(dirname "$0")/suite.sh"
