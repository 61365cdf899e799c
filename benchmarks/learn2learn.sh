#!/usr/bin/env bash
# Installs learn2learn 0.2.0, whose package holds C files that current Python can't compile: they are made anew.
set -euo pipefail
folder=$(mktemp -d)
pip install "Cython>=3" setuptools wheel gym cloudpickle scipy requests
pip download --no-deps --no-binary learn2learn --no-build-isolation --dest "$folder" learn2learn==0.2.0
tar -xzf "$folder"/learn2learn-0.2.0.tar.gz -C "$folder"
cd "$folder"/learn2learn-0.2.0
cython -3 learn2learn/data/*.pyx
pip install --no-deps --no-build-isolation .
