"""The packaged bundles: one folder a task, in the layout of MONAI's model zoo."""
