# Removes the files of a failed install.
for d in /tmp /var/tmp; do
    rm -rf "$d/nvidia-driver-installer.run" "$d/phoenix-nvidia.unpack" "$d/phoenix-nvidia.try"
done
