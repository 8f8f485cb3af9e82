"""The real simulation behind the interface of the learned one."""
