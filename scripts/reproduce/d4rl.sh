#!/usr/bin/env bash
# D4RL gym-mujoco v2, 12 tasks: MOPO and MOBILE, one sweep, one report.
#
#   scripts/reproduce/d4rl.sh FOLDER [key=value ...]
#   ALGOS="mopo mobile edac" TASKS="hopper-medium-v2 ..." SEEDS=4 UPDATES=3000000 ...
#   DATA=FOLDER ...       where the datasets lie; default: as docs/data.md says
#   LAUNCHER=ray ...      or joblib, submitit_slurm: jobs at the same time
#   scripts/reproduce/d4rl.sh FOLDER --smoke
#
# Budget: 12 tasks x 2 algorithms x 4 seeds = 96 runs of 3,000,000 updates, the published length. An estimate, from
# measured rates and not from whole runs: about 3,400 hours of one CPU core, 11 a run of MOPO and 60 a run of MOBILE
# (docs/reproduce.md); on a GPU unmeasured. Started again with the same FOLDER it goes on where it was stopped.
# --smoke: minutes; small networks, 200 updates, on the datasets found in DATA or else made up on the spot.
set -euo pipefail
benchmark=d4rl
all="halfcheetah-random-v2 hopper-random-v2 walker2d-random-v2
  halfcheetah-medium-v2 hopper-medium-v2 walker2d-medium-v2
  halfcheetah-medium-replay-v2 hopper-medium-replay-v2 walker2d-medium-replay-v2
  halfcheetah-medium-expert-v2 hopper-medium-expert-v2 walker2d-medium-expert-v2"
all=${all//$'\n'/ }
# shellcheck source-path=SCRIPTDIR source=suite.sh
source "$(dirname "$0")/suite.sh"
