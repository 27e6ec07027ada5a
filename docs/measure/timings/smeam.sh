#!/usr/bin/env bash
# Published s-MEAM files in snnp and in LAMMPS: bash docs/measure/timings/smeam.sh FOLDER (for the models; SNNP_DATA must be set)
set -euo pipefail
measure=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" && cd "$1"

compare() {  # file, element, structure, LAMMPS's case
  python - "$SNNP_DATA/potentials/$1" "$2" <<'END'
import sys

from snnp.models.spline.meam_file import read_meam_spline
from snnp.models.store import save_model

save_model(read_meam_spline(sys.argv[1], (sys.argv[2],)).float(), f"smeam-{sys.argv[2]}")
END
  python "$measure/compare.py" "smeam-$2" --structure "$3" --against lammps --only "smeam-$2,$4" --repeats 7 --seconds 0.1
}

compare meam-spline/Ti.meam.spline Ti hcp:Ti:a=2.95:c=4.68 "meam/spline Ti"
compare s-meam/Si.meam.spline Si diamond:Si:a=5.43 "s-MEAM Si"
compare s-meam/Mo.meam.spline Mo bcc:Mo:a=3.16 "s-MEAM Mo"
