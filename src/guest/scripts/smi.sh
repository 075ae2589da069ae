# nvidia-smi's table, then the list of GPUs in a stable form.
# The host's driver, mounted, where the root of the container takes no link to it.
for dir in /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib; do PATH=$PATH:$dir/glibc-hwcaps/x86-64-v2/bin; done
PATH=$PATH:/usr/lib/aarch64-linux-gnu/phoenix-nvidia/bin:/usr/lib64/phoenix-nvidia/bin
echo 'shown 1'
nvidia-smi 2>&1
rc=$?
echo
echo "rc $rc"
nvidia-smi --query-gpu=index,uuid,pci.bus_id,driver_version --format=csv,noheader 2>&1
echo
echo "list-rc $?"
