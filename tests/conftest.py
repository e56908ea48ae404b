"""The fixtures of all tests are the ones that inv_design ships."""

pytest_plugins = ["inv_design.testing"]
