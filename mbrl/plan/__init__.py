"""Planning: a search over action sequences under a model at every step, in place of a policy or on top of one."""
