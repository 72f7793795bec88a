"""Settings of Sphinx for the site of the documentation: sphinx-build -W --keep-going docs build/site.

The pages are docs/*.md as they are. Pages made from something else (configs, settings, commands, docstrings) are
written by docs/generators before each build, into docs/recipes and docs/reference, which git ignores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generators import api, links, pages

from grpo_jax import __version__

project = "grpo_jax"
version = release = __version__
copyright = "the authors of grpo_jax, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["generators", "images"]
myst_heading_anchors = 4  # as a code host makes them, so that page.md#heading leads there on both
myst_links_external_new_tab = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 60
python_display_short_literal_types = True

html_theme = "furo"
html_title = f"grpo_jax {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}  # generated pages have no source to be viewed or edited


def setup(app):
    """Writes the generated pages before Sphinx looks for pages, and adapts links and docstrings as they are read."""
    app.connect("builder-inited", lambda app: pages.write(Path(app.srcdir)))
    app.connect("source-read", links.adapt)
    app.connect("autodoc-process-docstring", api.convert)
    app.connect("autodoc-process-signature", api.readable)
