/*
 * Tries, as root of a container, to write to what is mounted read-only: `write-through PATH…`. Each way of making a mount
 * writable is followed by a write through the path (a directory: a new file in it) and tells both outcomes. It ends with 0
 * if nothing could be written, with 1 if something was, with 2 if it could not try.
 *
 * `write-through --below PATH` unmounts all that is there and writes to what lies below; `write-through --freeze PATH` makes
 * the file system itself read-only, for everybody who has it mounted. These end with 0 if that was done, else with 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLEARED (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

static int set_attributes(int at, const char *path, unsigned int flags)
{
	struct mount_attr attr = { .attr_clr = CLEARED };

	return syscall(SYS_mount_setattr, at, path, flags, &attr, sizeof(attr));
}

/* Each makes the mount at `path` writable, or fails with errno set; what it answers is where to write then. */

static const char *nothing(const char *path)
{
	return path;
}

static const char *remount_bind(const char *path)
{
	return mount("none", path, NULL, MS_REMOUNT | MS_BIND, NULL) ? NULL : path;
}

static const char *remount(const char *path)
{
	return mount("none", path, NULL, MS_REMOUNT, NULL) ? NULL : path;
}

static const char *setattr(const char *path)
{
	return set_attributes(AT_FDCWD, path, 0) ? NULL : path;
}

static const char *setattr_recursive(const char *path)
{
	return set_attributes(AT_FDCWD, path, AT_RECURSIVE) ? NULL : path;
}

/* The file system itself, behind every mount of it. */
static const char *reconfigure(const char *path)
{
	int fd = syscall(SYS_fspick, AT_FDCWD, path, 0);

	if (fd < 0 || syscall(SYS_fsconfig, fd, FSCONFIG_SET_FLAG, "rw", NULL, 0) ||
	    syscall(SYS_fsconfig, fd, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0))
		return NULL;
	return path;
}

/* A copy of the mount that is mounted nowhere, so that no path names it. */
static const char *detached(const char *path)
{
	static char copy[32];
	int fd = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE);

	if (fd < 0 || set_attributes(fd, "", AT_EMPTY_PATH))
		return NULL;
	snprintf(copy, sizeof(copy), "/proc/self/fd/%d", fd);
	return copy;
}

/* Another mount of it, at a path of its own: on one that is there already the kernel would mount over the first, too. */
static const char *elsewhere(const char *path)
{
	static char place[64];
	struct stat found;

	snprintf(place, sizeof(place), "/tmp/write-through.%d", getpid());
	if (stat(path, &found))
		return NULL;
	if (S_ISDIR(found.st_mode))
		mkdir(place, 0755);
	else
		close(open(place, O_CREAT | O_WRONLY, 0644));
	if (mount(path, place, NULL, MS_BIND, NULL) ||
	    (set_attributes(AT_FDCWD, place, 0) && mount("none", place, NULL, MS_REMOUNT | MS_BIND, NULL)))
		return NULL;
	return place;
}

static const char *namespace(const char *path)
{
	return unshare(CLONE_NEWNS) ? NULL : setattr(path);
}

static const char *user_namespace(const char *path)
{
	return unshare(CLONE_NEWUSER | CLONE_NEWNS) ? NULL : setattr(path);
}

static const struct {
	const char *name;
	const char *(*make)(const char *path);
} ways[] = {
	{ "as it is", nothing },
	{ "remount,bind,rw", remount_bind },
	{ "remount,rw", remount },
	{ "mount_setattr", setattr },
	{ "mount_setattr, recursive", setattr_recursive },
	{ "fsconfig rw", reconfigure },
	{ "a detached copy", detached },
	{ "a bind elsewhere", elsewhere },
	{ "a mount namespace", namespace },
	{ "a user namespace", user_namespace },
};

static int writes(const char *path)
{
	struct stat found;
	char file[4096];
	int fd;

	if (stat(path, &found))
		return -1;
	if (S_ISDIR(found.st_mode)) {
		snprintf(file, sizeof(file), "%s/written-through", path);
		fd = open(file, O_CREAT | O_WRONLY, 0644);
	} else {
		fd = open(path, O_WRONLY);
	}
	return fd < 0 || write(fd, "written through\n", 16) != 16 ? -1 : 0;
}

static int attempt(int way, const char *path)
{
	const char *made;
	int written;

	errno = 0;
	made = ways[way].make(path);
	printf("%s: %s: %s", path, ways[way].name, made ? "done" : strerror(errno));
	written = !writes(made ? made : path);
	printf("; write: %s\n", written ? "DONE" : strerror(errno));
	fflush(stdout);
	return written;
}

static int below(const char *path)
{
	int unmounted = 0;

	while (!umount2(path, MNT_DETACH))
		unmounted++;
	printf("%s: unmounted %d times, then %s; write: ", path, unmounted, strerror(errno));
	printf("%s\n", writes(path) ? strerror(errno) : "DONE");
	return !unmounted;
}

static int freeze(const char *path)
{
	int fd = syscall(SYS_fspick, AT_FDCWD, path, 0);
	int frozen = fd >= 0 && !syscall(SYS_fsconfig, fd, FSCONFIG_SET_FLAG, "ro", NULL, 0) &&
		     !syscall(SYS_fsconfig, fd, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0);

	printf("%s: fsconfig ro: %s\n", path, frozen ? "done" : strerror(errno));
	return !frozen;
}

int main(int count, char **paths)
{
	int written = 0, at, status;
	unsigned int way;

	if (count == 3 && !strcmp(paths[1], "--below"))
		return below(paths[2]);
	if (count == 3 && !strcmp(paths[1], "--freeze"))
		return freeze(paths[2]);
	for (at = 1; at < count; at++)
		for (way = 0; way < sizeof(ways) / sizeof(*ways); way++) {
			pid_t child = fork();

			if (child < 0)
				return 2;
			if (!child)
				_exit(attempt(way, paths[at]));
			if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
				return 2;
			written |= WEXITSTATUS(status);
		}
	return count < 2 ? 2 : written;
}
