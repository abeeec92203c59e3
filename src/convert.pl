# Reads configurations of the Perl proxy as that proxy did and prints what it found: a record a line, words between
# single blanks, values as KIND:HEX. Core modules only; without B or B::Deparse callbacks come without their text.
package GearmanProxy::Convert;

# What a configuration prints must not end up between the records.
open(my $out, '>&', \*STDOUT) or die("cannot duplicate standard output: $!\n");
open(STDOUT, '>&', \*STDERR) or die("cannot redirect standard output: $!\n");

sub record { print {$out} join(' ', @_), "\n"; return; }

# s bytes, w characters that are no bytes (as UTF-8), u undefined, q a compiled pattern, r another reference
sub value {
    my($value) = @_;
    return('u:') if !defined $value;
    my $kind = 's';
    if(ref $value) {
        $kind = ref $value eq 'Regexp' ? 'q' : 'r';
        $value = $kind eq 'q' ? "$value" : ref $value;
    }
    if(utf8::is_utf8($value) && !utf8::downgrade($value, 1)) {
        $kind = 'w' if $kind ne 'r';
        utf8::encode($value);
    }
    return($kind.':'.unpack('H*', $value));
}

# A file name of which `do` would take the search path is made one that names its folder.
sub place {
    my($file) = @_;
    return($file =~ m{^\.{0,2}/} ? $file : './'.$file);
}

# Messages and places show a file as it was named.
sub unplaced {
    my($text, $file) = @_;
    my $place = place($file);
    $text =~ s/\Q$place\E/$file/g if $place ne $file;
    return($text);
}

# The Perl proxy's order: of a folder all *.cfg, then all *.conf.
sub files {
    my($entry) = @_;
    if(-d $entry) {
        opendir(my $folder, $entry) or return;
        my @names = sort grep { !/^\./ } readdir($folder);
        closedir($folder);
        return(map { "$entry/$_" } grep({ /\.cfg$/ } @names), grep({ /\.conf$/ } @names));
    }
    return($entry) if -e $entry;
    return(grep { -e } glob($entry));
}

# The values of the variables that a callback takes from outside, as they are when the configuration has been read,
# which is when its first job would come.
sub variables {
    my($code, $text) = @_;
    my %outer;
    my %own;
    my($names, $values) = $code->PADLIST->ARRAY;
    my @names  = $names->ARRAY;
    my @values = $values->ARRAY;
    for my $i (0 .. $#names) {
        my $name = $names[$i];
        next if !$name->can('PV') || !defined $name->PV || $name->PV !~ /^\$(\w+)$/;
        my $bare = $1;
        next if $name->FLAGS & B::SVpad_OUR();
        if($name->FLAGS & B::SVf_FAKE()) {
            $outer{$bare} = ${$values[$i]->object_2svref};
        } else {
            $own{$bare} = 1;
        }
    }
    my %seen;
    for my $name (grep { !/^(?:\d+|_)$/ && !$seen{$_}++ } $text =~ /\$\{(\w+(?:::\w+)*)\}/g) {
        if(exists $outer{$name}) {
            # one name for two variables: nobody can tell from the text which is which
            record('variable', value($name), $own{$name} ? value(\1) : value($outer{$name}));
        } elsif(!$own{$name}) {
            my $full = $name =~ /::/ ? $name : "GearmanProxy::$name";
            record('variable', value($name), value(${$full}));
        }
    }
    return;
}

sub callback {
    my($sub, $files) = @_;
    my $code = eval { require B; B::svref_2object($sub) };
    my($file, $line, $utf8) = ('', 0, 0);
    if($code && ref $code->START && $code->START->can('line')) {
        $file = $code->START->file;
        $line = $code->START->line;
        $utf8 = 1 if $code->START->hints & 0x00800000; # HINT_UTF8 of perl.h
        for my $name (@{$files}) {
            $file = $name if place($name) eq $file;
        }
    } elsif($code) {
        record('callback', value(''), 0, 0, value(undef), value('names a sub that is not defined'));
        return;
    }
    if(!eval { require B::Deparse; 1 }) {
        record('callback', value($file), $line, $utf8, value(undef),
            value('cannot be read, as this Perl is without its module B::Deparse (the package perl has it)'));
        return;
    }
    my $text = eval { B::Deparse->new->coderef2text($sub) };
    my $marked = eval { GearmanProxy::Convert::Deparse->new->coderef2text($sub) };
    if(!defined $text || !defined $marked) {
        record('callback', value($file), $line, $utf8, value(undef), value("cannot be shown by B::Deparse: $@"));
        return;
    }
    # for people; the package is the same in all of them
    $text =~ s/^ *package GearmanProxy;\n//m;
    record('callback', value($file), $line, $utf8, value($text), value($marked));
    variables($code, $marked);
    return;
}

# Writes every plain variable as ${name}, where B::Deparse leaves "${1}0" and "$10", "${x}[0]" and "$x[0]" alike.
sub mark_variables {
    @GearmanProxy::Convert::Deparse::ISA = ('B::Deparse');
    for my $op (qw(pp_padsv pp_gvsv pp_rv2sv)) {
        my $plain = B::Deparse->can($op) or next;
        *{"GearmanProxy::Convert::Deparse::$op"} = sub {
            my $text = $plain->(@_);
            $text =~ s/^\$(\w+(?:::\w+)*)$/\${$1}/;
            return($text);
        };
    }
    return;
}

sub option {
    my($name, $option, $files) = @_;
    if(ref $option eq 'CODE') {
        record('option', value($name), 'c:');
        callback($option, $files);
    } else {
        record('option', value($name), value($option));
    }
    return;
}

sub run {
    my @read;
    for my $entry (@_) {
        my @files = files($entry);
        record('error', value("$entry: there is no such configuration file")) if !@files;
        for my $file (@files) {
            my $handle;
            if(!open($handle, '<', $file)) {
                record('error', value("$file: cannot be read: $!"));
                next;
            }
            close($handle);
            push @read, $file;
            record('file', value($file));
            GearmanProxy::evaluate(place($file));
            if($@) {
                my $message = ref $@ ? 'died with a '.ref($@) : "$@";
                chomp($message);
                record('error', value(unplaced($message, $file)));
            }
        }
    }

    mark_variables() if eval { require B::Deparse };
    record('global', 'logfile', value($GearmanProxy::logfile));
    record('global', 'debug', value($GearmanProxy::debug));
    record('global', 'statusqueue', value($GearmanProxy::statusqueue));
    record('global', 'pidfile', value($GearmanProxy::pidfile));

    my $queues = $GearmanProxy::queues;
    if(ref $queues ne 'HASH') {
        record('error', value('$queues is no reference to a hash: $queues->{"HOST:PORT/QUEUE"} = ...'));
        $queues = {};
    }
    for my $source (sort keys %{$queues}) {
        my $target = $queues->{$source};
        if(!ref $target) {
            record('forward', value($source));
            record('option', value('remoteQueue'), value($target));
        } elsif(ref $target eq 'HASH') {
            record('forward', value($source));
            option($_, $target->{$_}, \@read) for sort keys %{$target};
        } else {
            record('forward', value($source), value($target));
        }
    }
    record('end');
    return;
}

package GearmanProxy;

our $queues      = {};
our $logfile     = '';
our $debug       = 0;
our $statusqueue = '';
our $pidfile;

# In this package, where the proxy has its variables, and where no lexical ones are in a configuration's sight.
sub evaluate { do $_[0]; return; }

package GearmanProxy::Convert;

run(@ARGV);
