#!/bin/bash
# The Python packages that the daemon needs and Debian's stable release lacks, as pip names them:
# ioctl-opt (LGPL-2.0-or-later, by Vincent Pelletier).
echo 'ioctl-opt>=1.3'
