"""The training mixture (paper 4.1, B.1, table 5): example ``i`` of a run is a function of the configuration and ``i`` alone.

config -> pools of records -> one record -> one exchange -> ``Example``
"""
