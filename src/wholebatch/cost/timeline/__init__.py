"""What each thread of one real step of the engine did, and when: who came last at each meeting, and who waited."""
