#!/usr/bin/env bash
# NeoRL-2, 7 tasks: MOPO and MOBILE, one sweep, one report.
#
#   scripts/reproduce/neorl2.sh FOLDER [key=value ...]
#   scripts/reproduce/neorl2.sh FOLDER 'env=neorl2:${task}'     with NeoRL-2's repository installed: true returns
#   ALGOS="mopo mobile" TASKS="Pipeline ..." SEEDS=4 UPDATES=3000000 ...
#   DATA=FOLDER ...       where the datasets lie; default: as docs/data.md says
#   LAUNCHER=ray ...      or joblib, submitit_slurm: jobs at the same time
#   scripts/reproduce/neorl2.sh FOLDER --smoke
#
# Budget: 7 tasks x 2 algorithms x 4 seeds = 56 runs of 3,000,000 updates. An estimate, from measured rates and not from
# whole runs: about 2,000 hours of one CPU core, 11 a run of MOPO and 60 a run of MOBILE (docs/reproduce.md); on a GPU
# unmeasured. Started again with the same FOLDER it goes on where it was stopped. Without an environment nothing is
# scored: runs have the model's own estimate alone, which no table of returns may show.
# --smoke: minutes; small networks, 200 updates, on the datasets found in DATA or else made up on the spot.
set -euo pipefail
benchmark=neorl2
all="Pipeline Simglucose RocketRecovery RandomFrictionHopper DMSD Fusion SafetyHalfCheetah"
# shellcheck source-path=SCRIPTDIR source=suite.sh
source "$(dirname "$0")/suite.sh"
