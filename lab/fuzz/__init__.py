# SPDX-License-Identifier: GPL-2.0-or-later
"""
Inputs for the fuzz targets in tests/unit, recorded from real transfers
"""
