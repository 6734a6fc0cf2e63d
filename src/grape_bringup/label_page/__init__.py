"""The labelling page: recorded episodes to watch and judge, and the running trial."""
