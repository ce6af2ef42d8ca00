"""The documentation site: Sphinx, MyST, the gallery of ``examples/``."""

import os
import sys
from importlib import metadata
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent))

import generated

project = "targetprop"
author = "the targetprop developers"
release = metadata.version("targetprop")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "generated",
]
exclude_patterns = ["_build", "_generated", "sg_execution_times.rst", "gallery/GALLERY_HEADER.rst"]
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache", "myst.xref_missing"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
intersphinx_mapping = {}

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"\.py$",
    "reset_modules": ("matplotlib", "generated.fresh"),
    "reset_argv": generated.Lengths(),
    "within_subsection_order": "generated.Order",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "min_reported_time": 1e9,
    "show_memory": False,
    "plot_gallery": True,
}

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "targetprop"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_theme_options = {"sidebar_hide_name": False}
linkcheck_ignore = [r"https?://.*"]  # the build has no network; links within the site are checked
