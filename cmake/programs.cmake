# SPDX-License-Identifier: Apache-2.0
# The daemon, the client library and the command line.
