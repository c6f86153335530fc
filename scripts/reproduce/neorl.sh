#!/usr/bin/env bash
# NeoRL, 9 tasks: MOPO and MOBILE, one sweep, one report.
#
#   scripts/reproduce/neorl.sh FOLDER [key=value ...]
#   ALGOS="mopo mobile" TASKS="Hopper-v3-low ..." SEEDS=4 UPDATES=3000000 ...
#   DATA=FOLDER ...       where the datasets lie; default: as docs/data.md says
#   LAUNCHER=ray ...      or joblib, submitit_slurm: jobs at the same time
#   scripts/reproduce/neorl.sh FOLDER --smoke
#
# Budget: 9 tasks x 2 algorithms x 4 seeds = 72 runs of 3,000,000 updates. An estimate, from measured rates and not from
# whole runs: about 2,600 hours of one CPU core, 11 a run of MOPO and 60 a run of MOBILE (docs/reproduce.md); on a GPU
# unmeasured. Started again with the same FOLDER it goes on where it was stopped.
# --smoke: minutes; small networks, 200 updates, on the datasets found in DATA or else made up on the spot.
set -euo pipefail
benchmark=neorl
all="HalfCheetah-v3-low HalfCheetah-v3-medium HalfCheetah-v3-high
  Hopper-v3-low Hopper-v3-medium Hopper-v3-high
  Walker2d-v3-low Walker2d-v3-medium Walker2d-v3-high"
all=${all//$'\n'/ }
# shellcheck source-path=SCRIPTDIR source=suite.sh
source "$(dirname "$0")/suite.sh"
