#!/usr/bin/perl
# random.pl SEED: prints a configuration of gearman_proxy.pl with 150 random callbacks, always the same for a seed.
use strict;
use warnings;

srand($ARGV[0]);
sub one { return $_[rand @_] }

my @patterns = ('a', '^type=host$', '^host_name=(\w+)', 'o+', '(b)|(c)', '\s+$', '^result_queue=(.*)$', 'x$', '^t', 'web', '[a-c]\b', '^type=(.*)$');
my @replacements = ('x', '', '$1', '<$1>', 'type=host', '\n', 'result_queue=q', '-\U$1\E-', 'host_name=\L$1', '$&$&', 'b c', '\u$1x1');

sub test { return '$d =~ /'.one(@patterns).'/'.one('m', '', 'mi', 'ms') }

sub condition {
    my $form = rand;
    return $form < 0.5 ? test() : $form < 0.7 ? '!('.test().')' : $form < 0.85 ? test().' || '.test() : test().' && '.test();
}

sub substitution {
    my($variable) = @_;
    my($pattern, $replacement, $flags) = (one(@patterns), one(@replacements), one('m', '', 'mi', 'm', 'gm', 'ms'));
    ($replacement, $flags) = ('lc("A$1") . sprintf("%s!", "z")', $flags.'e') if rand() < 0.1;
    $replacement =~ s/\$1/B/ if $pattern !~ /\(/;
    return "$variable =~ s/$pattern/$replacement/$flags";
}

sub statement {
    my($depth) = @_;
    my @forms = (
        sub { substitution('$d') },
        sub { substitution('$d').' if '.condition() },
        sub { substitution('$d').' unless '.condition() },
        sub { 'return '.one('$d', '($d, $u)', '$o').' if '.condition() },
        sub { one('$d .= "q\n"', '$d = "p" . $d', '$d = "<$d>"', '$d = lc $d', '$d = "k" if '.condition(), '$u = $o') },
        sub { '$u = $1 if '.test() },
        sub { 'my($h) = '.test().'; $u = '.one('$h', '"h-$h"') },
        sub { one('($u = $d)', '$o').' =~ s/^(\w+)/<$1>/' },
        sub { 'for($d) { '.substitution('$_').' }' },
    );
    push @forms, sub { one('if', 'unless').'('.condition().') { '.statement(1).' }'.one('', ' else { '.statement(1).' }') },
        sub { 'if('.test().') { $u = "$1-k"; '.one('', 'return($d, $u); ').'}' }, $forms[0], $forms[0] if !$depth;
    return one(@forms)->().';';
}

print "my \@callbacks = (\n";
for(1 .. 150) {
    my $body = join(' ', map { statement(0) } 0 .. rand 3);
    print "    sub { my(\$d) = \@_; my \$o = \$d; my \$u; $body return ", one('$d', '($d, $u)'), " },\n";
}
print ");\n\$queues->{\"a/\$_\"} = { remoteQueue => \"b/\$_\", data_callback => \$callbacks[\$_] } for 0 .. \$#callbacks;\n";
