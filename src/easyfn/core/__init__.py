"""The ground: verbs, trees and their paths, weights and the slots they sit in. Imports nothing above it."""
