"""What vgpuctl sees of running daemons and of the host. It asks from outside: nothing here runs in
a daemon, whose sandbox has neither /proc nor /sys."""
