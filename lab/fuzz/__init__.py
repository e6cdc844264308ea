# SPDX-License-Identifier: GPL-2.0-or-later
"""
Inputs of the fuzz targets in tests/unit, recorded in real transfers
"""
