// Landlock: this process gives up the file system for good. Three system calls, so no library.
#include "vgpu.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

// <linux/landlock.h> as of ABI 6; older headers lack the later rights and members.
struct ruleset {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;
	uint64_t scoped;
};

struct path_beneath {
	uint64_t allowed_access;
	int32_t parent_fd;
} __attribute__((packed));

#define CREATE_RULESET_VERSION 1u
#define RULE_PATH_BENEATH 1
#define READ_FILE (1ull << 2)
#define READ_DIR (1ull << 3)
#define REMOVE_FILE (1ull << 5)
#define FS_OF_1 0x1fffull      // all of ABI 1
#define REFER (1ull << 13)     // 2
#define TRUNCATE (1ull << 14)  // 3
#define TCP 3ull               // 4: bind and connect
#define IOCTL_DEV (1ull << 15) // 5: of devices opened from now on
#define SCOPES 3ull            // 6: abstract UNIX sockets and signals of others

static struct ruleset ruleset_of(int abi)
{
	struct ruleset rules = {.handled_access_fs = FS_OF_1};

	if (abi >= 2)
		rules.handled_access_fs |= REFER;
	if (abi >= 3)
		rules.handled_access_fs |= TRUNCATE;
	if (abi >= 4)
		rules.handled_access_net = TCP;
	if (abi >= 5)
		rules.handled_access_fs |= IOCTL_DEV;
	if (abi >= 6)
		rules.scoped = SCOPES;
	return rules;
}

// `folders`: descriptors. 0, or -1 with errno.
static int allow(int ruleset, const Py_buffer *folders, uint64_t access)
{
	for (Py_ssize_t at = 0; at + (Py_ssize_t)sizeof(int) <= folders->len; at += sizeof(int)) {
		struct path_beneath rule = {.allowed_access = access};
		int fd;

		memcpy(&fd, (const char *)folders->buf + at, sizeof(fd));
		rule.parent_fd = fd;
		if (syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0))
			return -1;
	}
	return 0;
}

static int restrict_by(int ruleset)
{
	// Without it an unprivileged process may not restrict itself.
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	return (int)syscall(SYS_landlock_restrict_self, ruleset, 0);
}

PyObject *landlock_restrict(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"readable", "removable", NULL};
	_cleanup_buffer_ Py_buffer readable = {NULL};
	_cleanup_buffer_ Py_buffer removable = {NULL};
	struct ruleset rules;
	int abi, ruleset, failed, error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*y*:landlock_restrict", names, &readable,
					 &removable))
		return NULL;
	abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);
	if (abi < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	rules = ruleset_of(abi);
	// An older kernel takes a larger struct whose tail is zero.
	ruleset = (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0);
	if (ruleset < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	failed = allow(ruleset, &readable, READ_FILE | READ_DIR) || allow(ruleset, &removable, REMOVE_FILE) ||
		 restrict_by(ruleset);
	error = errno;
	close(ruleset);
	errno = error;
	if (failed)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromLong(abi);
}
