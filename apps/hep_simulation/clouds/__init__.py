"""Jets as particle clouds: sets of constituents, in no order, as many as there are."""
