"""What every test of a host needs before its host is imported."""

from __future__ import annotations

import os

# Hosts that report home read these when they are imported; no test reaches outside the machine.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
