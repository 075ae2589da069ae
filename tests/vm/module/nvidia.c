// SPDX-License-Identifier: GPL-2.0
/*
 * What a host shows of a loaded NVIDIA driver with two cards: /proc/driver/nvidia, /proc/devices, /sys/module/nvidia/version,
 * a driver of the PCI bus, and device nodes that open. Like NVIDIA's own module it makes no node in /dev. There is nothing
 * behind it.
 */
#include <linux/cdev.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#define VERSION "580.95.05"
#define MAJOR_195 195
#define CARDS 2

static const struct file_operations opens = {
	.owner = THIS_MODULE,
};

/* As NVIDIA's module names them in /proc/devices. */
static struct {
	const char *name;
	dev_t first;
	unsigned int count;
	struct cdev cdev;
	bool added;
} devices[] = {
	{ "nvidia", MKDEV(MAJOR_195, 0), 254 },
	{ "nvidia-modeset", MKDEV(MAJOR_195, 254), 1 },
	{ "nvidiactl", MKDEV(MAJOR_195, 255), 1 },
	/* 0: a dynamic major. */
	{ "nvidia-uvm", 0, 2 },
};

static int version_show(struct seq_file *m, void *v)
{
	seq_puts(m, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  " VERSION
		    "  Release Build  (builder@vm)  Tue Sep 23 10:11:41 UTC 2025\n"
		    "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)\n");
	return 0;
}

static int params_show(struct seq_file *m, void *v)
{
	seq_puts(m, "ResmanDebugLevel: 4294967295\nRmLogonRC: 1\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n"
		    "DeviceFileGID: 0\nDeviceFileMode: 438\nInitializeSystemMemoryAllocations: 1\n");
	return 0;
}

static int information_show(struct seq_file *m, void *v)
{
	unsigned long card = (unsigned long)m->private;

	seq_printf(m, "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t %lu\n"
		      "GPU UUID: \t GPU-5f2c0de0-1b7a-4c1d-9e3f-a1b2c3d4%04lx\nVideo BIOS: \t 95.02.3c.40.0b\n"
		      "Bus Type: \t PCIe\nDMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\n"
		      "Bus Location: \t 0000:%02lx:00.0\nDevice Minor: \t %lu\nGPU Firmware: \t " VERSION "\n"
		      "GPU Excluded:\t No\n",
		   130 + card, card, card + 1, card);
	return 0;
}

static struct proc_dir_entry *proc;

static int make_proc(void)
{
	struct proc_dir_entry *gpus, *card;
	unsigned long number;
	char address[16];

	proc = proc_mkdir("driver/nvidia", NULL);
	if (!proc)
		return -ENOMEM;
	gpus = proc_mkdir("gpus", proc);
	if (!gpus || !proc_create_single("version", 0444, proc, version_show) ||
	    !proc_create_single("params", 0444, proc, params_show))
		return -ENOMEM;
	for (number = 0; number < CARDS; number++) {
		snprintf(address, sizeof(address), "0000:%02lx:00.0", number + 1);
		card = proc_mkdir(address, gpus);
		if (!card || !proc_create_single_data("information", 0444, card, information_show, (void *)number))
			return -ENOMEM;
	}
	return 0;
}

static int make_device(int at)
{
	int failed;

	if (devices[at].first)
		failed = register_chrdev_region(devices[at].first, devices[at].count, devices[at].name);
	else
		failed = alloc_chrdev_region(&devices[at].first, 0, devices[at].count, devices[at].name);
	if (failed)
		return failed;
	cdev_init(&devices[at].cdev, &opens);
	failed = cdev_add(&devices[at].cdev, devices[at].first, devices[at].count);
	if (failed)
		unregister_chrdev_region(devices[at].first, devices[at].count);
	else
		devices[at].added = true;
	return failed;
}

static void clear(void)
{
	int at;

	for (at = 0; at < ARRAY_SIZE(devices); at++) {
		if (!devices[at].added)
			continue;
		cdev_del(&devices[at].cdev);
		unregister_chrdev_region(devices[at].first, devices[at].count);
	}
	proc_remove(proc);
}

/* No card is its: what udev gets is that the bus has the driver, and that comes last. */
static const struct pci_device_id cards[] = { { } };
static struct pci_driver driver = { .name = "nvidia", .id_table = cards };

static void __exit nvidia_exit(void)
{
	pci_unregister_driver(&driver);
	clear();
}

static int __init nvidia_init(void)
{
	int failed = make_proc();
	int at;

	for (at = 0; !failed && at < ARRAY_SIZE(devices); at++)
		failed = make_device(at);
	if (!failed)
		failed = pci_register_driver(&driver);
	if (failed)
		clear();
	return failed;
}

module_init(nvidia_init);
module_exit(nvidia_exit);
MODULE_DESCRIPTION("Stands in for NVIDIA's module in phoenix-nvidia's tests");
MODULE_LICENSE("GPL");
MODULE_VERSION(VERSION);
