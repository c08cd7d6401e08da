// The one place where a SIGBUS of vanished guest memory becomes an exception.
#include "vgpu.h"

#include <signal.h>
#include <unistd.h>

// Initial-exec: the handler may be the first to look in a thread, and may not allocate.
#define HANDLER_LOCAL static _Thread_local __attribute__((tls_model("initial-exec")))

HANDLER_LOCAL struct guard *volatile current;
HANDLER_LOCAL volatile sig_atomic_t forwarded;

// One per process, like the disposition it remembers.
static struct sigaction previous;

static void forward(int signo, siginfo_t *info, void *context)
{
	bool sent = info->si_code <= 0;

	// Once only: faulthandler raises the signal again for who was there before it, which
	// is us where it was enabled after the import; the second time is the end.
	if (!forwarded) {
		forwarded = 1;
		if (previous.sa_flags & SA_SIGINFO) {
			previous.sa_sigaction(signo, info, context);
			return;
		}
		if (previous.sa_handler == SIG_IGN && sent) {
			forwarded = 0;
			return;
		}
		if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
			previous.sa_handler(signo);
			return;
		}
	}
	signal(signo, SIG_DFL);
	if (sent)
		raise(signo); // a fault needs no help: its instruction runs again
}

static void on_sigbus(int signo, siginfo_t *info, void *context)
{
	struct guard *guard = current;
	uintptr_t address = (uintptr_t)info->si_addr;

	if (guard && info->si_code > 0) {
		// A page with a memory error is reported by its first byte, hence the mask.
		if (address >= (guard->start & ~(uintptr_t)4095) && address < guard->end) {
			guard->fault = address;
			current = NULL;
			// The mask needs no repair: SA_NODEFER and an empty sa_mask mean that
			// nothing is blocked in here that was not blocked outside.
			siglongjmp(guard->jump, 1);
		}
	} else if (guard && info->si_code == SI_TKILL && info->si_pid == getpid()) {
		// faulthandler, enabled after us, has reported the fault, removed itself and
		// raised the signal again. Back to the instruction: it faults for us this time.
		return;
	}
	forward(signo, info, context);
}

// Also called for each new region: who took the signal since the import is put behind us.
int guard_install(void)
{
	struct sigaction now, ours = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK,
	};

	if (sigaction(SIGBUS, NULL, &now) < 0)
		return -1;
	if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigbus)
		return 0;
	previous = now;
	sigemptyset(&ours.sa_mask);
	return sigaction(SIGBUS, &ours, NULL);
}

static bool run(struct guard *guard, guard_work *work, void *arg)
{
	if (sigsetjmp(guard->jump, 0))
		return false;
	forwarded = 0;
	current = guard;
	work(guard, arg);
	// The last access must not sink below the end of the guard.
	atomic_signal_fence(memory_order_seq_cst);
	current = NULL;
	return true;
}

bool guarded(struct state *state, const struct memory *memory, guard_work *work, void *arg,
	     uint64_t bytes)
{
	struct guard guard = {.start = 0, .end = 0};
	// A device may not answer for seconds, however few bytes are wanted.
	bool long_one = bytes > GIL_BYTES || memory_is_device(memory);
	PyThreadState *thread = long_one ? PyEval_SaveThread() : NULL;
	bool done = run(&guard, work, arg);
	uint64_t gpa;

	if (thread)
		PyEval_RestoreThread(thread);
	if (done)
		return true;
	if (memory_find_host(memory, guard.fault, &gpa))
		raise_error(state->guest_fault, "guest memory at 0x%llx has gone away",
			    (unsigned long long)gpa);
	else
		PyErr_SetString(state->guest_fault, "guest memory has gone away");
	return false;
}
