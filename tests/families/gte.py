"""GTE, with each of its heads."""

from encoder_cases import ROTARY, encoder_cases

rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
encoder_cases("Gte", "GteConfig", heads=ROTARY, type_vocab_size=2, hidden_act="relu", rope_parameters=rope)
