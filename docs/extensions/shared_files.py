"""Files of the repository that the site shows without a second copy: pictures, and pages at the root."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

SHARED = {
    "images/contact_sheet.png": "examples/contact_sheet.png",
    "images/samples.png": "conceptkit/storybook/samples.png",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Address in the site -> path in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the shared files to the site."""
    root = Path(config.config_file_path).parent
    for address, path in SHARED.items():
        files.append(File.generated(config, address, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of pages at the root, which lead into docs/ there, lead beside them here."""
    return markdown.replace("](docs/", "](") if page.file.src_uri in SHARED else markdown
