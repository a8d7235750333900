"""Captions for regularisation, one a line: everyday scenes for any base that is not the storybook."""
