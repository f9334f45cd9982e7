"""The live panel's server side: the run store, and the routes that read it."""
