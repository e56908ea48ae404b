#!/usr/bin/env bash
# Installs what `make test-hpc` needs and this machine lacks, and says what: Slurm, munge, MPI, Java and the libraries
# of GPAW by apt-get (as root), GPAW itself into the virtual environment in the first argument.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin="${1:-.venv}/bin"

packages=(slurm-wlm munge gcc g++ pkg-config libxc-dev libopenblas-dev libfftw3-dev openmpi-bin libopenmpi-dev)
command -v java > /dev/null || packages+=(default-jre-headless)
command -v mvn > /dev/null || packages+=(maven)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2> /dev/null | grep -q '^ii' || missing+=("$package")
done
if ((${#missing[@]})); then
  command -v apt-get > /dev/null || { echo "no apt-get here; install by hand: ${missing[*]}" >&2; exit 1; }
  (($(id -u) == 0)) || { echo "call as root: apt-get install --no-install-recommends ${missing[*]}" >&2; exit 1; }
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi

if ! "$bin/python" -c 'import gpaw' 2> /dev/null; then
  echo "building GPAW with MPI and FFTW into $bin"
  GPAW_CONFIG="$PWD/tests/hpc/gpaw_siteconfig.py" "$bin/python" -m pip install --quiet --no-cache-dir --no-binary gpaw \
    -c constraints.txt -e '.[dev,gpaw]'
fi
gpaw=$("$bin/python" -c 'import gpaw; print(gpaw.__version__)')
echo "slurm $(slurmctld -V | cut -d' ' -f2), $(munged -V | cut -d' ' -f1), gpaw $gpaw"
