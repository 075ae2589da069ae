# nvidia-smi's table, then the list of GPUs in a stable form.
echo 'shown 1'
nvidia-smi 2>&1
rc=$?
echo
echo "rc $rc"
nvidia-smi --query-gpu=index,uuid,pci.bus_id,driver_version --format=csv,noheader 2>&1
echo
echo "list-rc $?"
