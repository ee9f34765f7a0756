"""How good a language model is: likelihoods of texts and answers, and an adapter for lm_eval."""
