#!/bin/sh
# Pushes the image in the archive $1 as another version, by its label, with the tag `next`.
set -eu
folder=$(mktemp --directory --tmpdir=/var/tmp)
skopeo copy --quiet "oci-archive:$1" "oci:$folder:next"
umoci config --image "$folder:next" --config.label org.opencontainers.image.version=next
skopeo copy --quiet "oci:$folder:next" docker://registry.example/infra/pause:next
